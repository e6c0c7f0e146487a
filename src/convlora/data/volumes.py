"""Medical volumes, DICOM and NIfTI, are not read: what such a file is, and where it is said what to do."""

from pathlib import Path

_DICOM = 128, b"DICM"  # where it stands in the file; many have no ending, or one of their own
_NIFTI = (".nii", ".nii.gz")
FIX = "Save its slices as PNG, and of labels the class ids (docs/rearrange.md has a program)."


def volume_kind(path: Path) -> str:
    """'a DICOM file', 'a NIfTI volume', or '' for all else and for what cannot be read."""
    if path.name.lower().endswith(_NIFTI):
        return "a NIfTI volume"
    start, sign = _DICOM
    if path.suffix.lower() in {".dcm", ".dicom"}:
        return "a DICOM file"
    try:
        with path.open("rb") as file:
            file.seek(start)
            return "a DICOM file" if file.read(len(sign)) == sign else ""
    except OSError:
        return ""
