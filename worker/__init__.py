"""DICOM in, masks, flags and findings in SQL. Research use, not a medical device."""

import logging

__version__ = "0.1.0"

#: Version of our own reading and post-processing. A job is done once for each
#: (instance, bundle, revision): raise it when the same bundle would give another result.
REVISION = 2

# At any level their messages quote headers, data sets, or addresses with UIDs in them; what matters comes
# back as an exception. pydicom sets its own level when it is imported, so the level alone would not last.
for _library in ("pydicom", "pynetdicom", "highdicom", "requests", "urllib3"):
    logging.getLogger(_library).setLevel(logging.CRITICAL + 1)
    logging.getLogger(_library).disabled = True
