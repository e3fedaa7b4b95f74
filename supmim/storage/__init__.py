"""Where files are: on this machine, or in a bucket of Google Cloud Storage or S3."""
