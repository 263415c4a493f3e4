#!/usr/bin/env python3
"""FFCV's or torchvision's loader, one epoch whenever asked: the peers that `cargo bench --bench loader` runs.

usage: loader.py ffcv|torchvision BETON PIXELS IMAGES BATCH THREADS...

BETON is a `.beton` file of 32x32 images that FFCV reads memory-mapped, in random order; PIXELS the same images as
plain bytes, which torchvision maps as a `Dataset` of PIL images. Both flip, translate by up to 4 pixels (a crop out of
a border of 4), cut out a square of 8, normalise, and end with f32 batches, [N, 3, 32, 32] in channels-last memory
(FFCV) or contiguous (torchvision), and labels. FFCV's square always lies within the image, ours and the other one's
may be clipped at the border.

Says `{"version": ...}` once everything is compiled and warm; then, for every line `THREADS IMAGES` on standard input,
loads that many images (FFCV: always all) and answers `{"images": ..., "seconds": ..., "cpu_seconds": ...}`, the latter
of all threads and worker processes. Installation of FFCV: OpenCV's and libturbojpeg's development packages, then `pip install ffcv pillow torchvision`.
"""
import json, os, sys, time
from pathlib import Path

MEAN, STD = (125.307, 122.961, 113.8575), (51.5865, 50.847, 51.255)
TRANSLATE, CUTOUT = 4, 8


def ffcv_loaders(beton, batch, threads):
    import ffcv, numpy as np
    from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import (Cutout, NormalizeImage, RandomHorizontalFlip, RandomTranslate, Squeeze, ToTensor,
                                 ToTorchImage)
    from importlib.metadata import version

    fill = tuple(round(m) for m in MEAN)

    def loader(n):
        image = [SimpleRGBImageDecoder(), RandomHorizontalFlip(), RandomTranslate(TRANSLATE, fill), Cutout(CUTOUT, fill),
                 NormalizeImage(np.array(MEAN), np.array(STD), np.float32), ToTensor(),
                 ToTorchImage(convert_back_int16=False)]
        pipelines = {"image": image, "label": [IntDecoder(), ToTensor(), Squeeze()], "true_label": None, "role": None,
                     "index": None}
        return Loader(beton, batch_size=batch, num_workers=n, os_cache=True, order=OrderOption.RANDOM, seed=0,
                      drop_last=False, pipelines=pipelines)

    loaders = {n: loader(n) for n in threads}
    return version("ffcv"), lambda n, _: loaders[n]


def torchvision_loaders(pixels, images, batch, threads):
    import numpy as np, torch, torchvision
    from PIL import Image
    from torchvision import transforms

    torch.set_num_threads(1)
    pixels = np.memmap(pixels, np.uint8, "r", shape=(images, 32, 32, 3))

    class Cutout:
        """DeVries & Taylor 2017: the centre anywhere, clipped at the borders, 0 after normalisation."""

        def __call__(self, image):
            y, x = (int(torch.randint(side, ())) for side in image.shape[1:])
            image[:, max(y - CUTOUT // 2, 0) : y + CUTOUT // 2, max(x - CUTOUT // 2, 0) : x + CUTOUT // 2] = 0
            return image

    class Images(torch.utils.data.Dataset):
        change = transforms.Compose([
            transforms.RandomCrop(32, padding=TRANSLATE), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
            transforms.Normalize([m / 255 for m in MEAN], [s / 255 for s in STD]), Cutout()])

        def __len__(self):
            return images

        def __getitem__(self, i):
            return self.change(Image.fromarray(pixels[i])), i % 10

    class Some(torch.utils.data.Sampler):
        """The first `n` of a random order."""
        n = images

        def __iter__(self):
            return iter(torch.randperm(images)[: self.n].tolist())

        def __len__(self):
            return self.n

    made = {n: torch.utils.data.DataLoader(Images(), batch_size=batch, sampler=Some(), num_workers=n,
                                           persistent_workers=True) for n in threads}

    def loader(n, wanted):
        made[n].sampler.n = wanted
        return made[n]

    return torchvision.__version__, loader


def cpu_seconds():
    """Of this process and those it started, in clock ticks of the system."""
    tasks = Path("/proc/self/task")
    pids = [pid for file in tasks.glob("*/children") for pid in file.read_text().split()] if tasks.exists() else []
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return time.process_time() + sum(int(stat[11]) + int(stat[12]) for stat in stats) / os.sysconf("SC_CLK_TCK")


def epoch(loader, batch):
    start, cpu, images = time.perf_counter(), cpu_seconds(), 0
    for x, y in loader:
        images += len(x)
        last = x
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    assert str(last.dtype) == "torch.float32" and tuple(last.shape[1:]) == (3, 32, 32) and len(last) == len(y)
    # A mean of zero and a deviation of one, but for borders, squares and noise.
    assert abs(float(last.mean())) < 0.5 and 0.5 < float(last.std()) < 2, (last.mean(), last.std())
    return {"images": images, "seconds": seconds, "cpu_seconds": cpu}


def main():
    which, beton, pixels, images, batch, *threads = sys.argv[1:]
    images, batch, threads = int(images), int(batch), [int(n) for n in threads]
    try:
        if which == "ffcv":
            version, loader = ffcv_loaders(beton, batch, threads)
        else:
            version, loader = torchvision_loaders(pixels, images, batch, threads)
    except ImportError as error:
        raise SystemExit(f"{which}: {error}")
    for n in threads:
        epoch(loader(n, 2 * batch), batch)
    print(json.dumps({"version": version}), flush=True)
    for line in sys.stdin:
        n, wanted = (int(word) for word in line.split())
        print(json.dumps(epoch(loader(n, wanted), batch)), flush=True)


if __name__ == "__main__":
    main()
