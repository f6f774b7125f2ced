"""Networks of the literature, each with a normalization of choice; :func:`pyronorm.convert` them.

``norm`` makes the normalization of so many channels: ``nn.BatchNorm2d``, or
``lambda n: nn.GroupNorm(4, n)``; None (or ``nn.Identity``) for a network without, whose convolutions
have biases. ``dropout`` is that of the paper, or of those who predict with it
(:func:`pyronorm.baselines.predict_dropout`).

What :class:`~pyronorm.normalizers.Weight` and :class:`~pyronorm.normalizers.Analytic` can take over:

==================  ===================================================  ===========================
network             Weight                                               Analytic
==================  ===================================================  ===========================
``MLP`` and others  all layers                                           all layers
``WideResNet``      only ``*.norm2``: the others are fed by a sum, not   all layers
                    by a convolution
==================  ===================================================  ===========================
"""

from pyronorm.networks.all_cnn import AllCNN
from pyronorm.networks.lenet import LeNet5
from pyronorm.networks.mlp import MLP
from pyronorm.networks.resnet import CifarResNet, ResNet18
from pyronorm.networks.small import SmallConvNet
from pyronorm.networks.vgg import VGG11
from pyronorm.networks.wide_resnet import WideResNet

__all__ = [
    "MLP",
    "VGG11",
    "AllCNN",
    "CifarResNet",
    "LeNet5",
    "ResNet18",
    "SmallConvNet",
    "WideResNet",
]
