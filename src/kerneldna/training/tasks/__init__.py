"""Tasks: model, loss and metric as a LightningModule; one file each, found through the registry."""
