"""The version of the native engine's bits.

The engine's C++ and its driver, ``resnet_cifar.native``, are no dependencies of training: a comment there must not make
days of training stale. This number is. It is raised when the golden hashes of the tests change, and never otherwise.
"""

NATIVE = 1
