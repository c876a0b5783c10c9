"""Several scans in one run: finding them, planning their outputs, segmenting them, their table."""
