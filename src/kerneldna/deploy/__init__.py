"""From a trained network to one that runs fast anywhere: fusing, export, quantizing."""
