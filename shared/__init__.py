"""What both sides agree on: settings, messages, the network, diffusion, errors. Imports none of our other rooms."""
