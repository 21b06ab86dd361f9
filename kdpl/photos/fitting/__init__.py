"""The steps of `kdpl fit`: the pass over the photos, what is learned from it, the comparison."""
