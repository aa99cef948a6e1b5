"""Small services that every room uses: files, progress, texts, locks, devices."""
