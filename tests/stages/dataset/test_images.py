"""What becomes of one image: every mode on purpose, every broken file with a reason that names what to do."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from stages.dataset.decode import BadImage, content_sha256, decode, decode_whole, read_file, silent
from stages.dataset.image_statistics import described, dhash
from stages.dataset.jpeg_header import plain_header
from tests.stages.dataset.pictures import encoded, picture


def test_square_is_torchvisions_resize_and_centre_crop():
    """The oracle: Resize(short side) and CenterCrop as in the paper's protocol. Rounding may move a grey level or two,
    and the crop half a source pixel."""
    from torchvision.transforms import v2

    image = picture(0, 120, 80)
    pixels, facts = decode(encoded(image), 32)
    theirs = np.asarray(v2.CenterCrop(32)(v2.Resize(32)(image))).transpose(2, 0, 1)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (3, 32, 32)
    assert np.abs(pixels.astype(int) - theirs).mean() < 1
    assert (facts["width"], facts["height"], facts["mode"]) == (120, 80, "RGB")


@pytest.mark.parametrize(("width", "size"), [(101, 64), (101, 32), (100, 32), (700, 64), (2001, 64)])
def test_the_middle_is_kept_to_a_quarter_of_a_pixel(width, size):
    """On a ramp a pixel says where it came from; what is far too large is averaged first."""
    height = 64 if width < 500 else 500
    ramp = np.linspace(0, 255, width, dtype=np.float32).round().astype(np.uint8)
    pixels, _ = decode(np.tile(ramp, (height, 1)), size)
    steps = np.diff(pixels[0].astype(float).mean(0))
    assert abs(pixels.mean() - 127.5) <= 0.25 * 255 / (width - 1) + 0.4
    assert steps.mean() == pytest.approx(255 / (width - 1) * height / size, rel=0.05)


def test_an_image_of_the_right_size_is_not_touched():
    image = picture(1, 32, 32)
    assert np.array_equal(decode(encoded(image), 32)[0], np.asarray(image).transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, kind):
    """Stored turned and flagged so, an image comes out upright: all eight cases, by the inverse transpositions."""
    upright = picture(2, 64, 48)
    turn = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = upright
    for step in turn.get(orientation, []):
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels, facts = decode(encoded(stored, kind, exif=exif), 32)
    assert (facts["width"], facts["height"]) == (64, 48)
    assert np.abs(pixels.astype(int) - decode(encoded(upright), 32)[0]).max() <= 1


@pytest.mark.parametrize(
    ("width", "height", "levels"), [(1600, 1200, 1.5), (640, 480, 1.5), (384, 288, 1), (90, 66, 1)]
)
def test_a_large_jpeg_is_decoded_small_and_looks_the_same(width, height, levels):
    """Grey levels off: few. Small ones are decoded whole."""
    image = picture(3, width, height)
    content = encoded(image, "JPEG", quality=95)
    from_jpeg, facts = decode(content, 32)
    from_full, _ = decode(encoded(Image.open(io.BytesIO(content))), 32)
    assert (facts["width"], facts["height"]) == (width, height)
    assert np.abs(from_jpeg.astype(int) - from_full).mean() < levels


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_every_mode_becomes_rgb(mode):
    """A grey picture says the same in every mode (black or white where there is one bit)."""
    grey = np.asarray(picture(4, 32, 32).convert("L"))
    if mode == "1":
        grey = np.where(grey > 127, 255, 0).astype(np.uint8)
    images = {
        "I;16": lambda: Image.fromarray(grey.astype(np.uint16) * 257),
        "I": lambda: Image.fromarray(grey.astype(np.int32) * 257),
        "F": lambda: Image.fromarray(grey.astype(np.float32) / 255),
    }
    image = images.get(mode, lambda: Image.fromarray(grey).convert(mode))()
    assert image.mode == mode
    pixels, facts = decode(encoded(image, "TIFF"), 32)
    assert facts["mode"] == mode
    assert np.abs(pixels.astype(int) - grey).max() <= 2


def test_damage_beside_the_pixels_is_no_damage():
    """Broken EXIF in a PNG, and a very long comment."""
    image, text = Image.fromarray(np.full((16, 16, 3), 90, np.uint8)), PngInfo()
    text.add_text("comment", "x" * 2_000_000, zip=True)
    for content in (encoded(image, exif=b"Exif\0\0nonsense"), encoded(image, pnginfo=text)):
        assert (decode(content, 16)[0] == 90).all()


def test_what_is_transparent_lies_on_white():
    """Not on the colour that hides beneath: half is red and opaque, half is red and invisible."""
    image = Image.new("RGBA", (32, 32), (255, 0, 0, 255))
    image.paste((255, 0, 0, 0), (0, 0, 32, 16))
    for content in (encoded(image), encoded(image.quantize(4), "PNG"), encoded(image, "WEBP", lossless=True)):
        pixels, _ = decode(content, 32)
        assert pixels[:, 0, 0].tolist() == [255, 255, 255]
        assert pixels[:, 31, 31].tolist() == [255, 0, 0]


def test_of_an_animation_the_first_frame_counts():
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime", "blue")]
    pixels, _ = decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), 32)
    assert pixels[:, 16, 16].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"these are words, not pixels", "not an image: "),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image: "),  # would start Ghostscript
        (encoded(picture(5), "JPEG")[:600], "broken: "),
        (encoded(picture(5), "PNG")[:-900], "broken: "),
        (encoded(picture(5), "PNG")[:60] + b"\x00" * 900, "broken: "),
        (encoded(Image.fromarray(np.full((9, 9), 7.5, np.float32)), "TIFF"), "unknown range: values from 7.5 to 7.5"),
    ],
)
def test_a_broken_file_has_a_reason(content, words):
    with pytest.raises(BadImage, match=words):
        decode(content, 32)


def test_a_decompression_bomb_is_refused_before_it_unfolds():
    bomb = bytearray(encoded(Image.new("1", (16, 16))))
    bomb[16:24] = (200_000).to_bytes(4, "big") * 2  # 40 thousand million pixels, says the header
    import zlib

    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    with pytest.raises(BadImage, match="too large: more than 178 million pixels; shrink it"):
        decode(bytes(bomb), 32)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "empty.png").touch()
    with pytest.raises(BadImage, match="empty: "):
        read_file(str(tmp_path / "empty.png"))
    with pytest.raises(BadImage, match="missing: "):
        read_file(str(tmp_path / "nowhere.png"))
    with pytest.raises(BadImage, match="unreadable: "):
        read_file(str(tmp_path))


UPRIGHT = Image.Exif()
UPRIGHT[0x0112] = 1
KINDS = {
    "420": {},
    "444": {"subsampling": 0},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 2},
    "coarse": {"quality": 5},
    "rgb": {"keep_rgb": True},
    "exif": {"exif": UPRIGHT},
    "profile": {"icc_profile": b"of some screen"},
    "grey": {},
}


def jpeg(kind: str, width: int = 61, height: int = 47) -> bytes:
    image = picture(7, width, height)
    return encoded(image.convert("L") if kind == "grey" else image, "JPEG", **KINDS[kind])


def unable(_):
    raise RuntimeError("no such decoder")


def without_torchvision(monkeypatch: pytest.MonkeyPatch, content: bytes, size: int) -> tuple | str:
    """What comes of it where Pillow decodes."""
    with monkeypatch.context() as patch:
        patch.setattr("stages.dataset.decode.decode_jpeg", unable)
        return outcome(content, size)


def outcome(content: bytes, size: int) -> tuple | str:
    try:
        pixels, facts = decode(content, size)
    except BadImage as error:
        return str(error)
    return pixels.tobytes(), facts


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_jpeg_is_pillows_to_the_bit(kind, monkeypatch):
    for width, height in ((61, 47), (64, 64), (33, 90), (1, 1)):
        content = jpeg(kind, width, height)
        assert outcome(content, 47) == without_torchvision(monkeypatch, content, 47)


@pytest.mark.parametrize("kind", ["420", "progressive", "grey"])
def test_damaged_jpegs_get_the_same_verdict_from_both_decoders(kind, monkeypatch, capfd):
    """Cut anywhere, or with bytes changed: what Pillow cannot read is refused in its words; of what libjpeg gets over
    both keep the pixels, without a word on stderr that names no file."""
    content, draw = jpeg(kind), np.random.default_rng(0)
    damaged = [content[:end] for end in range(1, len(content), 37)]
    for _ in range(60):
        changed = bytearray(content)
        for place in draw.integers(2, len(content), 3):
            changed[place] = draw.integers(256)
        damaged.append(bytes(changed))
    with silent():
        verdicts = [(outcome(some, 47), without_torchvision(monkeypatch, some, 47)) for some in damaged]
    assert all(ours == theirs for ours, theirs in verdicts)
    assert {isinstance(ours, str) for ours, _ in verdicts} == {True, False}
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_very_long_image_loses_its_ends(mode):
    """Its middle is what a square of the same pixels is."""
    ramp = np.linspace(0, 255, 1001).round().astype(np.uint8)
    pixels, facts = decode(encoded(Image.fromarray(np.tile(ramp, (40, 1))).convert(mode)), 20)
    assert facts["width"] == 1001
    assert abs(pixels.mean() - 127.5) < 0.5
    whole, _ = decode_whole(encoded(Image.fromarray(np.tile(ramp, (40, 1))).convert(mode)), 20)
    assert whole.shape == (3, 20, 80)


def test_an_array_without_pixels():
    with pytest.raises(BadImage, match="broken: it has no pixels"):
        decode(np.zeros((0, 5), np.uint8), 8)


def test_a_jpeg_that_is_turned_or_far_too_large_is_pillows_affair(monkeypatch):
    monkeypatch.setattr("stages.dataset.decode.decode_jpeg", lambda _: pytest.fail("not plain"))
    exif = Image.Exif()
    exif[0x0112] = 6
    decode(encoded(picture(1, 64, 48), "JPEG", exif=exif), 32)
    decode(encoded(picture(1, 640, 480), "JPEG"), 32)
    decode(encoded(picture(1, 64, 48).convert("CMYK"), "JPEG"), 32)


def test_the_name_of_an_image_is_its_content():
    import hashlib

    assert content_sha256(b"abc") == hashlib.sha256(b"abc").hexdigest()
    a = np.arange(12, dtype=np.uint8)
    assert content_sha256(a.reshape(3, 4)) != content_sha256(a.reshape(4, 3))
    assert content_sha256(a.reshape(3, 4).T) == content_sha256(np.ascontiguousarray(a.reshape(3, 4).T))


def test_what_is_described_against_its_definition():
    """Several at once, the same as each by itself."""
    squares = [np.array(picture(6 + i, 40, 40)).transpose(2, 0, 1) for i in range(3)] + [
        np.full((3, 40, 40), 90, np.uint8)
    ]
    facts = described(squares)
    assert facts == [one for square in squares for one in described([square])]
    assert [f["mean"] for f in facts] == [round(float(square.mean()), 2) for square in squares]
    assert [f["std"] for f in facts] == pytest.approx([square.std() for square in squares], abs=0.0051)
    assert (facts[-1]["std"], facts[-1]["phash"]) == (0, "0" * 64)


def test_dhash_against_its_definition():
    images = [np.array(picture(seed, 17, 16)) for seed in (6, 7)]
    assert dhash(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)) == [in_words(image) for image in images]


def in_words(image: np.ndarray) -> str:
    grey = (image.astype(int) @ (299, 587, 114) + 500) // 1000
    bits = "".join("1" if grey[y, x + 1] > grey[y, x] else "0" for y in range(16) for x in range(16))
    return f"{int(bits, 2):064x}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_header_is_what_pillow_reads(kind):
    content = jpeg(kind)
    with Image.open(io.BytesIO(content)) as image:
        read = (*image.size, image.mode)
    plain = kind not in ("rgb", "exif", "profile")  # their segments could say that the pixels mean something else
    assert plain_header(content) == (read if plain else None)
    assert plain_header(content[: len(content) // 20]) is None


@pytest.mark.parametrize("kind", ["exif", "adobe", "cmyk", "png", "huge", "empty"])
def test_a_header_that_is_not_plain_is_left_to_pillow(kind, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    contents = {
        "exif": encoded(picture(1), "JPEG", exif=exif),
        "adobe": encoded(picture(1), "JPEG", keep_rgb=True),
        "cmyk": encoded(picture(1).convert("CMYK"), "JPEG"),
        "png": encoded(picture(1)),
        "huge": jpeg("420"),
        "empty": b"",
    }
    if kind == "huge":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert plain_header(contents[kind]) is None
