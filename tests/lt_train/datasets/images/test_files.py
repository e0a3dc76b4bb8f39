"""Images in files: decoding like torchvision, equality of files and memory, and the report of unreadable images."""

import io
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from lt_train.core.errors import DataError
from lt_train.datasets._images.checks import probe
from lt_train.datasets._images.decode import Decoder, set_decode_threads
from lt_train.datasets._images.files import Files, ImageFiles, read_ahead
from lt_train.datasets.base import Labelled
from lt_train.datasets.longtail import take

RANDOM = np.random.default_rng(3)


def make_image(width: int = 12, height: int = 9, mode: str = "RGB") -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (height, width) if channels == 1 else (height, width, channels)
    return Image.fromarray(RANDOM.integers(0, 256, shape, dtype=np.uint8), mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def images(tmp_path: Path) -> ImageFiles:
    names = [f"{k}.jpg" for k in range(7)]
    for name in names:
        make_image().save(tmp_path / name, quality=90)
    return opened(tmp_path, names)


def opened(root: Path, names: list[str], size: int = 6, resize: int = 8) -> ImageFiles:
    source, decoder = Files(root, names), Decoder(size, resize)
    sizes, wrong = probe(source, decoder, whole=False)
    assert wrong == {}
    return ImageFiles(source, decoder, sizes)


@pytest.mark.parametrize(("width", "height"), [(40, 30), (30, 41), (17, 17), (8, 90)])
@pytest.mark.parametrize(("size", "resize"), [(8, 8), (8, 11), (13, 16)])
def test_resize_and_crop_are_torchvisions(width: int, height: int, size: int, resize: int) -> None:
    image = make_image(width, height)
    expected = v2.Compose([v2.Resize(resize), v2.CenterCrop(size), v2.PILToTensor()])(image)
    assert torch.equal(torch.from_numpy(Decoder(size, resize)(encoded(image)).copy()), expected)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = make_image(6, 6, mode)
    expected = np.asarray(image)
    colours = expected[..., :3] if mode.startswith("RGB") else np.stack([expected.reshape(6, 6, -1)[..., 0]] * 3, -1)
    assert np.array_equal(Decoder(6, 6)(encoded(image)), colours.transpose(2, 0, 1))


def test_a_palette_becomes_its_colours() -> None:
    image = make_image(6, 6).quantize(8)
    decoded = Decoder(6, 6)(encoded(image, transparency=b"\x00\x80" * 4))
    assert np.array_equal(decoded, np.asarray(image.convert("RGB")).transpose(2, 0, 1))


def test_cmyk_becomes_rgb() -> None:
    red = Image.new("CMYK", (6, 6), (0, 255, 255, 0))
    decoded = Decoder(6, 6)(encoded(red, "JPEG", quality=100))
    assert decoded.shape == (3, 6, 6)
    assert decoded[0].min() > 250
    assert decoded[1:].max() < 5


def test_images_of_sixteen_bits_keep_their_upper_eight() -> None:
    grey = np.arange(36, dtype=np.uint16).reshape(6, 6) * 1800
    decoded = Decoder(6, 6)(encoded(Image.fromarray(grey)))
    assert np.array_equal(decoded[2], (grey >> 8).astype(np.uint8))


@pytest.mark.parametrize("white", [65535, 1023])
def test_a_grey_ramp_of_a_pgm_stays_a_ramp(white: int) -> None:
    ramp = np.linspace(0, white, 36).round().astype(np.uint16).reshape(6, 6)
    decoded = Decoder(6, 6)(b"P5 6 6 %d\n" % white + ramp.astype(">u2").tobytes())
    expected = np.floor(ramp / white * 255.999)
    assert np.abs(decoded - expected).max() <= 1
    assert (decoded.min(), decoded.max()) == (0, 255)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_pixels_of_32_bits_are_refused(tmp_path: Path, kind: type) -> None:
    (tmp_path / "a.tif").write_bytes(encoded(Image.fromarray(np.ones((6, 6), kind)), "TIFF"))
    _, wrong = probe(Files(tmp_path, ["a.tif"]), Decoder(6, 6), whole=False)
    assert list(wrong) == [0]
    assert wrong[0].startswith("pixels of 32 bits")


def test_a_rotation_in_exif_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = make_image(12, 12)
    plain, turned = (encoded(image, "JPEG", quality=90, **extra) for extra in ({}, {"exif": exif}))
    assert np.array_equal(Decoder(12, 12)(plain), Decoder(12, 12)(turned))


def test_they_are_indexed_like_a_tensor(images: ImageFiles) -> None:
    whole = images[:]
    assert (len(images), images.shape, whole.shape, whole.dtype) == (7, whole.shape, (7, 3, 6, 6), torch.uint8)
    assert torch.equal(images[2:5], whole[2:5])
    assert torch.equal(images[torch.tensor([6, 0, 0])], whole[[6, 0, 0]])
    assert torch.equal(images[whole[:, 0, 0, 0] > 90], whole[whole[:, 0, 0, 0] > 90])
    assert torch.equal(images[-1], whole[-1])
    assert images[7:].shape == (0, 3, 6, 6)


def test_files_and_memory_are_the_same(images: ImageFiles) -> None:
    held = images.hold()
    assert held.in_memory
    assert not images.in_memory
    chosen = torch.tensor([5, 1, 4])
    for one, other in ((images, held), (images.take(chosen), held.take(chosen))):
        assert one.names == other.names
        assert one.digest() == other.digest()
        assert torch.equal(one[:], other[:])
        assert torch.equal(one[torch.tensor([2, 0])], other[torch.tensor([2, 0])])


@pytest.mark.parametrize("held", [False, True])
def test_they_can_be_pickled(images: ImageFiles, held: bool) -> None:
    unpickled = pickle.loads(pickle.dumps(images.hold() if held else images))
    assert unpickled.in_memory is held
    assert torch.equal(unpickled[:], images[:])
    assert unpickled.digest() == images.digest()


def test_taking_and_hashing_labelled_images_in_files_and_memory(images: ImageFiles) -> None:
    labels, chosen = torch.arange(7), torch.tensor([3, 2])
    in_files, in_memory = (take(Labelled(one, labels), chosen) for one in (images, images.hold()))
    tensor = take(Labelled(images[:], labels), chosen)
    assert torch.equal(in_files.inputs[:], tensor.inputs)
    assert in_files.digest() == in_memory.digest() != tensor.digest()
    assert in_files.digest() != take(Labelled(images, labels + 1), chosen).digest()


def test_the_digest_covers_names_sizes_order_and_decoding_but_not_the_location(
    tmp_path: Path, images: ImageFiles
) -> None:
    digest, names = images.digest(), images.names
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in names:
        (elsewhere / name).write_bytes((tmp_path / name).read_bytes())
    assert opened(elsewhere, names).digest() == digest
    assert opened(elsewhere, names[::-1]).digest() != digest
    assert opened(elsewhere, names, size=5).digest() != digest
    assert opened(elsewhere, names, resize=9).digest() != digest
    (elsewhere / names[0]).write_bytes((elsewhere / names[0]).read_bytes() + b"\xff\xd9")
    assert opened(elsewhere, names).digest() != digest
    (elsewhere / "a.jpg").write_bytes((tmp_path / names[0]).read_bytes())
    assert opened(elsewhere, ["a.jpg", *names[1:]]).digest() != digest


@pytest.mark.parametrize("held", [False, True])
def test_reading_ahead_gives_every_batch_in_order(images: ImageFiles, held: bool) -> None:
    whole, one = images[:], images.hold() if held else images
    batches = [slice(0, 3), torch.tensor([6, 2]), slice(3, 7)]
    for batch, read in zip(batches, read_ahead(one, batches), strict=True):
        assert torch.equal(read, whole[batch])


def test_reading_ahead_can_stop_early_and_raises_errors(tmp_path: Path, images: ImageFiles) -> None:
    batches = [slice(start, start + 1) for start in range(7)]
    assert len(next(read_ahead(images, batches))) == 1
    (tmp_path / "4.jpg").unlink()
    with pytest.raises(DataError, match=r"image 4\.jpg cannot be decoded \(missing\).*data check"):
        list(read_ahead(images, batches))


@pytest.fixture
def reset_threads() -> Iterator[None]:
    yield
    set_decode_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


@pytest.mark.parametrize("count", [1, 3])
def test_the_number_of_decode_threads_is_respected(images: ImageFiles, reset_threads: None, count: int) -> None:
    together, seen = threading.Barrier(count), set[int]()

    class Watched:
        names = images.names[:6]

        def read(self, index: int) -> bytes:
            together.wait(60)  # times out with fewer threads
            seen.add(threading.get_ident())
            return images.source.read(index)

        def ends(self, index: int) -> tuple[int, bytes, bytes]:
            return images.source.ends(index)

    set_decode_threads(count)
    watched = ImageFiles(Watched(), images.decoder, np.zeros(6, dtype=np.int64))
    assert torch.equal(watched[:], images[:6])
    assert len(seen) == count


def test_every_defect_is_reported(tmp_path: Path) -> None:
    good = encoded(make_image(60, 60), "JPEG")
    contents = {
        "good.jpg": good,
        "garbage after its end.jpg": good + b"\0" * 9,
        "good.png": encoded(make_image()),
        "empty.jpg": b"",
        "truncated.jpg": good[: len(good) // 2],
        "page.jpg": b"<html>not found</html>",
        "truncated.png": encoded(make_image())[:-30],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "itself.jpg").symlink_to("itself.jpg")
    names = [*contents, "folder.jpg", "itself.jpg", "long" * 99, "nul\0.jpg", "good.jpg/below.jpg", "missing.jpg"]
    done: list[int] = []
    sizes, wrong = probe(Files(tmp_path, names), Decoder(6, 6), whole=False, on_checked=done.append)
    reasons = {names[index]: reason for index, reason in wrong.items()}
    assert list(reasons) == names[3:]
    assert (reasons["empty.jpg"], reasons["missing.jpg"]) == ("0 bytes", "missing")
    assert reasons["good.jpg/below.jpg"] == "missing"
    assert "truncated" in reasons["truncated.jpg"]
    assert reasons["page.jpg"] == "not an image of a known format"
    assert sizes[:2].tolist() == [len(good), len(good) + 9]
    assert sum(done) == len(names)


def test_an_image_that_is_a_program_is_refused_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "it ran"
    program = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n({trace}) (w) file closefile\n"
    (tmp_path / "a.jpg").write_text(program)
    assert probe(Files(tmp_path, ["a.jpg"]), Decoder(6, 6), whole=True)[1] == {0: "not an image of a known format"}
    assert not trace.exists()


def test_damage_inside_a_jpeg_is_found_by_the_whole_check_or_when_read(tmp_path: Path) -> None:
    good = encoded(make_image(60, 60), "JPEG")
    (tmp_path / "a.jpg").write_bytes(good[: len(good) // 2] + b"\xff\xd9")
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8\xff" + b"\0" * 50 + b"\xff\xd9")
    source, decoder = Files(tmp_path, ["a.jpg", "b.jpg"]), Decoder(6, 6)
    sizes, wrong = probe(source, decoder, whole=False)
    assert wrong == {}
    assert 1 in probe(source, decoder, whole=True)[1]
    with pytest.raises(DataError, match=r"image b\.jpg cannot be decoded .* check: whole"):
        ImageFiles(source, decoder, sizes)[:]


@pytest.mark.parametrize("kind", ["BMP", "GIF", "PPM", "TIFF", "WEBP"])
def test_other_formats_are_read(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a").write_bytes(encoded(make_image(6, 6), kind))
    assert probe(Files(tmp_path, ["a"]), Decoder(6, 6), whole=False)[1] == {}
