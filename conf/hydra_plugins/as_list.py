"""The resolver `as_list` of conf/config.yaml, found by Hydra's plugin discovery before composition."""

from omegaconf import ListConfig, OmegaConf

from resnet_cifar.params import as_list

OmegaConf.register_new_resolver("as_list", lambda value: ListConfig(as_list(value)), replace=True)
