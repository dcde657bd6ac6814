"""The velocity network, the flow around it, its token interface, and how fog_a reads them."""
