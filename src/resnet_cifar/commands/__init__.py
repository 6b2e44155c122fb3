"""What a user calls: the stages of dvc.yaml and ``resnet-cifar``; arguments and help here, the work in the library."""

import signal

# Until errors.exit_with takes over: the imports of a command take seconds, and Ctrl-C meanwhile needs no traceback.
signal.signal(signal.SIGINT, signal.SIG_DFL)
