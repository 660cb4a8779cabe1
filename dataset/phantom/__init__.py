"""The phantom: synthetic chest radiographs in the layout of the COVID-19 Radiography Database, with exact masks.

`write.write_phantom` writes it, `constants` names its classes and sizes, `python -m dataset.phantom` is its command.
"""
