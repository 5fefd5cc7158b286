"""The checksum at the end of an exported file, where its format lets one stand: it tells damage that a runtime would not see.

.onnx   a metadata entry behind all others: fields of a protobuf stand in any order
.xml    a comment behind the root element; it covers OpenVINO's weights in the .bin file too
.pt2    a zip file, which has a checksum of each part already

Programs that save an ONNX file anew keep its metadata, so the length of what is covered goes with the checksum: a file of another
length was changed by such a program, and is taken as it is.
"""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from zlib import crc32

from kerneldna.reading.shown import said

KEY = "kerneldna.sha256"
# a ModelProto's field 14 of 108 bytes, a pair of strings: the key of 16 bytes, the value of 88
_ONNX = b"\x72\x6c\x0a\x10" + KEY.encode() + b"\x12\x58%s"
_XML = b"<!-- " + KEY.encode() + b" %s -->\n"
_LENGTH = 88  # characters of length, SHA-256 and the CRC-32 of these two
_FORMS = {".onnx": _ONNX, ".xml": _XML}


def seal_(path: str | Path, form: str | None = None) -> None:
    """Put the checksum behind a file that was just written; for a format that has no place for one, do nothing.

    Args:
        path: The file.
        form: The format, ".onnx" for one; by default what its name ends in.
    """
    path, form = Path(path), form or Path(path).suffix
    if form in _FORMS:
        content = path.read_bytes()
        with path.open("ab") as file:
            file.write(_FORMS[form] % _sum(content, path, form))


def is_sealed(path: str | Path, form: str | None = None) -> bool:
    """Whether a file has such a checksum at its end."""
    form = form or Path(path).suffix
    return form in _FORMS and _split(Path(path).read_bytes(), form)[1] is not None


def check_seal(path: str | Path, form: str | None = None) -> None:
    """Check a file against its checksum; one without is taken as it is.

    Raises:
        ValueError: If the file is damaged.
    """
    path, form = Path(path), form or Path(path).suffix
    if form in _FORMS:
        content, noted = _split(path.read_bytes(), form)
        now = _sum(content, path, form)
        if noted not in (None, now) and (form == ".xml" or noted[:16] == now[:16] or not _is_whole(noted)):
            others = ", or the .bin file beside it," if form == ".xml" else ""
            raise ValueError(
                f"{path}{others} is damaged: it is not the file that was exported, by its checksum; restore it, or export the "
                f"network again (where another program changed it, remove {KEY} from its end)"
            )
    elif form == ".pt2":
        try:
            with zipfile.ZipFile(path) as file:
                if (part := file.testzip()) is not None:
                    raise ValueError(f"its part {part!r} is not what was written")
        except Exception as error:  # of zipfile, zlib and struct
            raise ValueError(
                f"{path} is damaged: {said(error)}; restore it, or export the network again"
            ) from error


def _split(content: bytes, form: str) -> tuple[bytes, bytes | None]:
    """Return a file's content without the checksum, and the checksum."""
    start, end = _FORMS[form].split(b"%s")
    length = len(start) + _LENGTH + len(end)
    last = content[-length:]
    if len(last) < length or not (last.startswith(start) and last.endswith(end)):
        return content, None
    return content[:-length], last[len(start) : len(start) + _LENGTH]


def _sum(content: bytes, path: Path, form: str) -> bytes:
    """Return the length and the SHA-256 of a file's content and of the weights beside it, in hexadecimal."""
    total, length = hashlib.sha256(content), len(content)
    if form == ".xml" and (weights := path.with_suffix(".bin")).is_file():
        with weights.open("rb") as file:
            while part := file.read(2**20):
                total.update(part)
                length += len(part)
    noted = b"%016x%s" % (length, total.hexdigest().encode())
    return b"%s%08x" % (noted, crc32(noted))


def _is_whole(noted: bytes) -> bool:
    return noted[-8:] == b"%08x" % crc32(noted[:-8])
