"""Stored tensors and values, read without running anything that their file holds.

files.py reads a file (torch, pickle, safetensors), unpickle.py the pickle in it, of which names.py says what its names
may mean; tensors.py describes tensors that still lie in the file, flatten.py names them; state.py gives a stored state
back as it was saved.
"""
