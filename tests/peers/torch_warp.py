"""Writes tests/golden/torch_warp.json: WaNet's grid and its warp, by PyTorch in double precision.

python tests/peers/torch_warp.py > tests/golden/torch_warp.json

The steps are those of Nguyen & Tran 2021 (arXiv:2102.10369), section 3.2: uniform offsets, divided by their mean absolute
value, enlarged bicubically, added to the identity grid as `strength * offset / extent`, clamped to [-1, 1]; then bilinear
sampling, corners aligned. Noise mode adds U[-1, 1] / extent and clamps again.
"""

import json
import torch
import torch.nn.functional as F


def case(side, size, strength, seed):
    torch.manual_seed(seed)
    height, width = size
    control = torch.rand(1, 2, side, side, dtype=torch.float64) * 2 - 1
    offsets = control / control.abs().mean()
    enlarged = F.interpolate(offsets, size=size, mode="bicubic", align_corners=True)
    extent = torch.tensor([width, height], dtype=torch.float64)
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height, dtype=torch.float64),
        torch.linspace(-1, 1, width, dtype=torch.float64),
        indexing="ij",
    )
    identity = torch.stack([x, y], dim=-1)[None]
    grid = torch.clamp(identity + strength * enlarged.permute(0, 2, 3, 1) / extent, -1, 1)
    image = torch.randint(0, 256, (1, 3, height, width))
    jitter = torch.rand(1, 2, height, width, dtype=torch.float64) * 2 - 1
    noisy = torch.clamp(grid + jitter.permute(0, 2, 3, 1) / extent, -1, 1)

    def sample(grid):
        warped = F.grid_sample(image.double(), grid, mode="bilinear", padding_mode="zeros", align_corners=True)
        return [round(v, 6) for v in warped[0].permute(1, 2, 0).flatten().tolist()]

    return {
        "side": side,
        "size": size,
        "strength": strength,
        "control": control.flatten().tolist(),
        "enlarged": [round(v, 12) for v in enlarged.flatten().tolist()],
        "image": image[0].permute(1, 2, 0).flatten().tolist(),
        "warped": sample(grid),
        "jitter": [round(v, 12) for v in jitter.flatten().tolist()],
        "jittered": sample(noisy),
    }


print(json.dumps([case(4, (9, 9), 0.5, 0), case(4, (8, 6), 3.0, 1), case(6, (5, 10), 0.75, 2), case(1, (4, 4), 0.5, 3)]))
