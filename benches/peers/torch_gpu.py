#!/usr/bin/env python3
"""Training epochs of ResNet-18 in PyTorch on a GPU, the peer of `cargo bench --features cuda --bench gpu`.

usage: torch_gpu.py [--model resnet18|vgg16-bn] [--batch 128 512 1024] [--epochs 3]

50,000 images of 32x32 lie on the GPU as uint8; every epoch draws an order and, for every image, a crop (4 pixels) and
a flip, as tensor operations. channels_last; f32, TF32, and autocast to bfloat16; eager and compiled; SGD with momentum and
weight decay (fused). An epoch drops nothing. The clock covers whole epochs, batches and augmentation included, between two
synchronisations; the first epoch (compilation, choice of algorithms) is not counted. Prints the median over the
others, and the versions that computed.
"""
import argparse, statistics, time
import torch, torch.nn as nn, torch.nn.functional as F

N, SIZE, PAD = 50_000, 32, 4
GFLOP = {"resnet18": 3.332, "vgg16-bn": 1.879}  # forward and backward, per image


class Block(nn.Module):
    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)
        self.shortcut = nn.Identity()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x), inplace=True)


def resnet18():
    layers = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
    for n_in, n_out, stride in [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]:
        layers += [Block(n_in, n_out, stride), Block(n_out, n_out, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def vgg16_bn():
    layers, n_in = [], 3
    for width in [64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0]:
        if width == 0:
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(n_in, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            n_in = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


def batch_of(pixels, rows):
    """A crop of the padded images and a flip, drawn for each; normalised to [-1, 1]."""
    n = len(rows)
    images = F.pad(pixels[rows], (0, 0, PAD, PAD, PAD, PAD))  # [n, 40, 40, 3]
    offsets = torch.randint(0, 2 * PAD + 1, (2, n, 1), device="cuda")
    steps = torch.arange(SIZE, device="cuda")
    y, x = steps + offsets[0], steps + offsets[1]  # [n, 32]
    x = torch.where(torch.rand(n, 1, device="cuda") < 0.5, x.flip(1), x)
    images = images[torch.arange(n, device="cuda")[:, None, None], y[:, :, None], x[:, None, :]]
    return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)  # channels_last in memory


def bench(name, batch, mode, compiled, n_epochs):
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = mode != "f32"
    network = {"resnet18": resnet18, "vgg16-bn": vgg16_bn}[name]().cuda().to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)
    pixels = torch.randint(0, 256, (N, SIZE, SIZE, 3), dtype=torch.uint8, device="cuda")
    labels = torch.randint(0, 10, (N,), device="cuda")
    run = torch.compile(network) if compiled else network
    seconds = []
    for _ in range(n_epochs + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        losses = []
        for rows in torch.randperm(N, device="cuda").split(batch):
            images = batch_of(pixels, rows)
            with torch.autocast("cuda", torch.bfloat16, enabled=mode == "bf16"):
                loss = F.cross_entropy(run(images), labels[rows])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        mean = torch.stack(losses).mean().item()
        seconds.append(time.perf_counter() - start)
    epoch = statistics.median(seconds[1:])
    print(
        f"{name:<10} batch {batch:>5}  {mode:<5} {'compiled' if compiled else 'eager':<9} {epoch:>7.3f} s/epoch "
        f"{N / epoch:>9,.0f} images/s {N / epoch * GFLOP[name] / 1e3:>6.1f} TFLOP/s  loss {mean:.3f}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18", choices=sorted(GFLOP))
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 512, 1024])
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("PyTorch sees no GPU")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}")
    for batch in args.batch:
        for mode in ("f32", "tf32", "bf16"):
            bench(args.model, batch, mode, False, args.epochs)
        bench(args.model, batch, "bf16", True, args.epochs)


if __name__ == "__main__":
    main()
