"""Reports: what runs are good for, as one page."""
