"""From stored records to batches on the mesh and, there, to the views that are trained on."""
