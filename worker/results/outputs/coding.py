"""Our coded terms as pydicom and highdicom take them."""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code as PydicomCode

from schema.codes import Code


def concept(code: Code) -> PydicomCode:
    """The code for an argument of highdicom."""
    return PydicomCode(code.value, code.scheme, code.meaning)


def item_of(code: Code) -> Dataset:
    """The code as an item of a code sequence (PS3.3 section 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme, code.meaning
    return item
