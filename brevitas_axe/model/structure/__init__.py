"""A model's modules as JSON and tensors, from which the same model is built again.

Nothing is pickled: a folder names classes and functions, and only those of torch.nn, Brevitas and
this package are looked up by name. Modules of any other class are taken from a model that the user
gives. Constructors do not run, so what calibration and solving found is not found again.
"""
