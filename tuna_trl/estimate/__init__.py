"""The memory of one training step before it is spent: from the config of a model, no weights loaded.

`shape` (what a model is made of), `workload` (how many tokens a batch holds), `activations` (what autograd keeps),
`memory` (all of it in order of time), `levers` (which flag changes the verdict), `plan` (from parsed arguments to an
estimate), `measured` (the same from two real steps).
"""
