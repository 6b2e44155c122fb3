"""Reading of the preprocessed data set, data/cifar10.safetensors."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from resnet_cifar.errors import InputError
from resnet_cifar.numerics.data import Dataset


def load(path: Path) -> Dataset:
    """Read the preprocessed data set.

    Raises
    ------
    InputError
        If the file is missing or is not what the preprocess stage writes.
    """
    try:
        # Copies: load_file maps the file, and what another process writes into it would be trained on.
        return Dataset.of({name: tensor.clone() for name, tensor in load_file(path).items()})
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: make it with `dvc repro preprocess`.") from None
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(
            f"{path} is not a preprocessed data set ({error}): make it again with `dvc repro -f -s preprocess`."
        ) from None
