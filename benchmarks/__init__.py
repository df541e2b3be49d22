"""Speed, memory and accuracy of torch_ACA side by side with other libraries and with the limit of its method."""
