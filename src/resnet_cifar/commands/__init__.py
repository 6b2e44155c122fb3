"""What a user calls: the stages of dvc.yaml and ``resnet-cifar``; arguments and help here, the work in the library."""
