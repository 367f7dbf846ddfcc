"""Multi-frame MR: functional groups in, functional groups out, frame by frame.

Left out: every group that is not in the table (timing, diffusion, anatomy, cardiac, ...); the rebuilt object therefore
carries geometry and pixels exactly and is not a complete Enhanced MR acquisition description.
"""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage

from client.deidentification import acceptance, elements, rules
from client.deidentification.manifest import Reason, Withheld
from client.deidentification.profile import GROUPS

REQUIRED = frozenset({"PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence"})
ALWAYS_PER_FRAME = frozenset({"FrameContentSequence", "PlanePositionSequence"})


def frame_groups(source: Dataset, frame: int) -> dict[str, Dataset]:
    """The source's own groups of one frame (from 0): the frame's item, else the shared one. Raises Withheld."""
    shared = _items(source, "SharedFunctionalGroupsSequence")
    per_frame = _items(source, "PerFrameFunctionalGroupsSequence")
    if len(shared) > 1 or frame >= len(per_frame):
        raise Withheld(Reason.REQUIRED)
    found = {}
    for name in (*GROUPS, "MRImageFrameTypeSequence", "MREchoSequence", "MRDiffusionSequence"):
        items = _items(per_frame[frame], name) or (_items(shared[0], name) if shared else [])
        if len(items) > 1:
            raise Withheld(Reason.REQUIRED)
        if items:
            found[name] = items[0]
    if not found.keys() >= REQUIRED:
        raise Withheld(Reason.REQUIRED)
    frame_type = found.get("MRImageFrameTypeSequence")
    if frame_type is not None:
        acceptance.check_type(acceptance.words(frame_type, "FrameType"))
        acceptance.check_component(frame_type)
    return found


def apply_groups(source: Dataset, result: Dataset, key: bytes) -> None:
    """Rebuild both functional group sequences of `result`; groups that are equal in all frames are shared."""
    count = int(result.NumberOfFrames)
    if count != len(_items(source, "PerFrameFunctionalGroupsSequence")):
        raise Withheld(Reason.REQUIRED)
    frames = [_rebuilt(source, frame, key) for frame in range(count)]
    shared = {
        name: item
        for name, item in frames[0].items()
        if name not in ALWAYS_PER_FRAME and all(frame.get(name) == item for frame in frames)
    }
    result.SharedFunctionalGroupsSequence = [_item(shared)]
    result.PerFrameFunctionalGroupsSequence = [
        _item({name: item for name, item in frame.items() if name not in shared}) for frame in frames
    ]


def split(result: Dataset) -> list[Dataset]:
    """Each frame of a rebuilt multi-frame object as a single-frame dataset with its own geometry and samples."""
    size = int(result.Rows) * int(result.Columns) * int(result.BitsAllocated) // 8
    shared = result.SharedFunctionalGroupsSequence[0]
    singles = []
    for number, groups in enumerate(result.PerFrameFunctionalGroupsSequence):
        single = Dataset()
        for element in result:
            if element.VR != "SQ" and element.keyword not in ("NumberOfFrames", "PixelData"):
                single.add(element)
        for name in GROUPS:
            for item in groups.get(name) or shared.get(name) or []:
                single.update(item)
        single.SOPClassUID = MRImageStorage  # what it now is; it is never written
        content = result.PixelData[number * size : (number + 1) * size]
        single.PixelData = content + b"\0" * (size % 2)
        single["PixelData"].VR = result["PixelData"].VR
        single.file_meta = result.file_meta
        singles.append(single)
    return singles


def _rebuilt(source: Dataset, frame: int, key: bytes) -> dict[str, Dataset]:
    groups = frame_groups(source, frame)
    rebuilt = {}
    for name, table in GROUPS.items():
        if name in groups:
            rebuilt[name] = elements.blank()
            rules.apply(table, groups[name], rebuilt[name], key)
    return {name: item for name, item in rebuilt.items() if item}


def _items(source: Dataset, keyword: str) -> list[Dataset]:
    return list(source.get(keyword) or [])


def _item(groups: dict[str, Dataset]) -> Dataset:
    item = elements.blank()
    for name, group in groups.items():
        setattr(item, name, [group])
    return item
