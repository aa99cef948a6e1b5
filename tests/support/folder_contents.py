"""What lies in a folder."""


def files_of(root):
    """Return the content of every file in a folder, hidden ones too, by its path inside the folder."""
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}
