"""What is released: drawn, judged by the gate, labelled, signed."""
