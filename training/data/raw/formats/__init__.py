"""File formats of images and label maps: one module a format, registered in `file_format`.

Every format gives voxels `(i, j, k)` or `(i, j, k, channel)` and an affine from voxel indices to
millimetres in RAS+, as nibabel does, whatever its own convention is.
"""
