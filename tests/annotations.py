"""The checker of annotations under `--check-shapes`."""

from beartype import BeartypeConf, beartype

# As for mypy, an integer may stand where a float is expected.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
