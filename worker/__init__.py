"""DICOM in, masks, flags and findings in SQL. Research use, not a medical device."""

__version__ = "0.1.0"

#: Version of our own reading and post-processing. A job is done once for each
#: (instance, bundle, revision): raise it when the same bundle would give another result.
REVISION = 1
