<?php
// Keeps each message in a file of its own in the folder "mail" beside this script, and says SAVED when it is on disk.
// Whatever else it says, the sender is told to try again.

// PHP drops a body that is larger than post_max_size, and takes one that ends too early because its sender has given up:
// it runs the script all the same.
if (!isset($_POST['body']) || strlen(file_get_contents('php://input')) !== (int) $_SERVER['CONTENT_LENGTH']) {
    exit('the message is not whole');
}

// Whoever does not wait any more sends the message again. PHP sees that when it writes, and ends the script here.
echo "\n";
flush();

$folder = __DIR__ . '/mail';
$name = bin2hex(random_bytes(16));
$file = fopen("$folder/.$name", 'xb');
$kept = $file !== false
    && fwrite($file, $_POST['body']) === strlen($_POST['body'])
    && fsync($file)
    && fclose($file)
    && rename("$folder/.$name", "$folder/$name.eml")
    && fsync(fopen($folder, 'r'));
echo $kept ? 'SAVED' : 'not kept';
