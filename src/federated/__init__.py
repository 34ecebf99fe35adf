"""What clients and server do to banks: candidates, allocation, codec, merge, calibration."""
