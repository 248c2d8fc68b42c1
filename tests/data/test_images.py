import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from trainer.data.images import Augmentation, MemoryImages, draw, memory_images

CPU = torch.device("cpu")
SCALE, SHIFT = [0.01, 0.02, 0.03], [0.1, -0.2, 0.3]


def pixels(samples: int, height: int = 10, width: int = 12, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (samples, channels, height, width), generator=generator, dtype=torch.uint8)


def one_by_one(images: Tensor, augmentation: Augmentation, indices: Tensor, key: int) -> Tensor:
    """The same with torchvision's functions, sample by sample."""
    height, width = images.shape[-2:]
    results = []
    draws = draw(augmentation, (height, width), indices, key)
    for index, (top, left, mirrored, y, x) in zip(indices.tolist(), draws.T.tolist(), strict=True):
        image = images[index]
        if augmentation.crop_padding:
            image = F.crop(F.pad(image, [augmentation.crop_padding]), top, left, height, width)
        if augmentation.flip and mirrored:
            image = F.horizontal_flip(image)
        inputs = F.normalize(
            image.float(), [-b / a for a, b in zip(SCALE, SHIFT, strict=True)], [1 / a for a in SCALE]
        )
        if augmentation.cutout:
            upper, lower = (
                min(max(y - augmentation.cutout // 2 + d, 0), height) for d in (0, augmentation.cutout)
            )
            start, end = (
                min(max(x - augmentation.cutout // 2 + d, 0), width) for d in (0, augmentation.cutout)
            )
            inputs = F.erase(inputs, upper, start, lower - upper, end - start, torch.tensor(0.0))
        results.append(inputs)
    return torch.stack(results)


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(),
        Augmentation(crop_padding=4),
        Augmentation(flip=True),
        Augmentation(cutout=5),
        Augmentation(crop_padding=1, flip=True, cutout=4),
        Augmentation(crop_padding=3, flip=True, cutout=30),
    ],
)
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_whole_batches_equal_torchvision_sample_by_sample(augmentation, layout):
    images = pixels(64)
    if layout == "channels last":
        images = images.contiguous(memory_format=torch.channels_last)
    split = MemoryImages(
        images, torch.arange(64), scale=SCALE, shift=SHIFT, device=CPU, augmentation=augmentation
    )
    indices = torch.randperm(64, generator=torch.Generator().manual_seed(1))[:50]
    inputs, targets = split.batch(indices, key=2**64 - 1)
    assert inputs.dtype == torch.float32
    assert inputs.is_contiguous()
    assert torch.equal(targets, indices)
    expected = one_by_one(images, augmentation, indices, 2**64 - 1)
    torch.testing.assert_close(inputs, expected, rtol=1e-5, atol=1e-5)


def test_draws_cover_their_ranges():
    top, left, mirrored, y, x = draw(Augmentation(2, True, 3), (6, 7), torch.arange(2000), key=0)
    for values, limit in ((top, 5), (left, 5), (mirrored, 2), (y, 6), (x, 7)):
        counts = values.bincount(minlength=limit)
        assert len(counts) == limit
        assert (counts - 2000 / limit).abs().max() < 5 * (2000 / limit) ** 0.5


def test_keys_change_the_augmentation_and_none_leaves_it_out():
    split = MemoryImages(
        pixels(20),
        torch.arange(20),
        scale=SCALE,
        shift=SHIFT,
        device=CPU,
        augmentation=Augmentation(3, True, 2),
    )
    indices = torch.arange(20)
    assert torch.equal(split.batch(indices, 1)[0], split.batch(indices, 1)[0])
    assert not torch.equal(split.batch(indices, 1)[0], split.batch(indices, 2)[0])
    plain = pixels(20) * torch.tensor(SCALE).view(3, 1, 1) + torch.tensor(SHIFT).view(3, 1, 1)
    torch.testing.assert_close(split.batch(indices, None)[0], plain)


def build(normalize: bool = True):
    images = pixels(100, 8, 8, 1)
    return memory_images(
        (images, torch.arange(100)),
        (images[:10], torch.arange(10)),
        num_classes=100,
        mean=[(images / 255).mean().item()],
        std=[(images / 255).std().item()],
        normalize=normalize,
        augmentation=Augmentation(),
        device=CPU,
    )


def test_inputs_are_normalised_or_in_the_unit_interval():
    inputs, _ = build().train.batch(torch.arange(100), None)
    assert inputs.mean().abs() < 1e-3
    assert (inputs.std() - 1).abs() < 1e-3
    inputs, _ = build(normalize=False).train.batch(torch.arange(100), None)
    torch.testing.assert_close(inputs, pixels(100, 8, 8, 1) / 255)


def test_facts():
    assert build().model_defaults == {"num_classes": 100, "in_channels": 1, "image_size": 8}
