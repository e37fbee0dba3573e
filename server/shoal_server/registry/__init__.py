"""Which models there are: manifests, names, versions, states."""
