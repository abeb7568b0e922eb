"""What is minimised: adversarial losses, penalties, class terms; and the augmentation they are computed under."""
