"""What decides the bytes of a trained cell, weights.safetensors and history.csv.

Every file here is a dependency of the train stage, and none outside is, the stage's script aside. So nothing here reads
or writes files, checks what a user gives or speaks to one, and nothing here imports another part of the package.
"""
