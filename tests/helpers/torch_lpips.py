"""LPIPS in PyTorch, written apart from escherjax, as an obvious witness.

The layers stand in torchvision's order, so that a state dict of its `features` fits, and
features are taken after the layers where the package lpips cuts them.
"""

import torch
from torch import nn

SHIFT = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
SCALE = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
TAPS = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}


def backbone(net):
    """The layers of torchvision's alexnet or vgg16, without the last pooling."""
    if net == "alex":
        layers = [
            nn.Conv2d(3, 64, 11, 4, 2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, 1, 2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, 1, 1),
            nn.ReLU(),
        ]
    else:
        layers, channels = [], 3
        for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(count):
                layers += [nn.Conv2d(channels, width, 3, 1, 1), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2, 2))
        layers.pop()
    return nn.Sequential(*layers)


def random_backbone(net):
    """Random weights that keep the size of features, by the names of torchvision's state dict."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in backbone(net).state_dict().items():
        scale = (2 / tensor[0].numel()) ** 0.5 if name.endswith("weight") else 0.1
        state[f"features.{name}"] = scale * torch.randn(tensor.shape, generator=generator)
    return state


@torch.no_grad()
def lpips(images, references, net, state, heads):
    """Distances [B] of float pictures [B, 3, H, W] in [-1, 1]; heads: five tensors [1, C, 1, 1]."""
    layers = backbone(net)
    layers.load_state_dict({name.removeprefix("features."): x for name, x in state.items()})
    first, second = ((x - SHIFT) / SCALE for x in (images, references))
    total = torch.zeros(len(images))
    taps = list(TAPS[net])
    for number, layer in enumerate(layers):
        first, second = layer(first), layer(second)
        if number in taps:
            unit_first, unit_second = (
                x / (torch.sqrt(torch.sum(x**2, dim=1, keepdim=True)) + 1e-10)
                for x in (first, second)
            )
            head = heads[taps.index(number)]
            weighted = nn.functional.conv2d((unit_first - unit_second) ** 2, head)
            total += weighted.mean(dim=(1, 2, 3))
    return total
