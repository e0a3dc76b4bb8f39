"""Running a sweep: prepare the feature bank, queue trials as packs, retry failed packs, and report the result."""
