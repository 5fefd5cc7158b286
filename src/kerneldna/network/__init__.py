"""What any network is made of: finding, replacing and running its modules, its convolutions by kind, its blocks."""
