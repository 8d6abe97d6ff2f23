"""The sources and layers that come with nbdfs, one module or folder each (see `nbdfs.registry`)."""
