"""NODE-18 on CIFAR: the paper's image classification experiment."""
