/** The page opened from a folder: browsers load no modules there, so this plain script says what to do. */
if (location.protocol === 'file:') {
  document.getElementById('setup').dataset.state = 'failed';
  document.getElementById('load').textContent = 'Not possible here';
  const message = document.getElementById('setup-message');
  message.textContent = 'This page does not run when it is opened from disk: serve its folder with "python -m fgtune_helpers serve", or put it on any static host.';
  message.classList.add('bad');
  message.hidden = false;
}
