"""Synthetic chest radiographs with exact truth.

They teach the first bundle, fill the demo, and are the parity films every engine is
checked with: no picture of a patient is involved.
"""

from __future__ import annotations

from worker.phantom.demo import write_demo_set, write_fast_set
from worker.phantom.dicom import dicom_bytes, phantom_dataset
from worker.phantom.phantom import Phantom, make_phantom

__all__ = ["Phantom", "dicom_bytes", "make_phantom", "phantom_dataset", "write_demo_set", "write_fast_set"]
