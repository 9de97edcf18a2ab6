"""The commands of `lora-jax`, a file each: `add_arguments(parser)` and `run(arguments) -> exit
status`.
"""
