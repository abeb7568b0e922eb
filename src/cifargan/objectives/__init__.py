"""What is minimised: adversarial losses, regularisers, class terms; and the augmentation they are computed under."""
