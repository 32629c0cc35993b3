// Keeps #live up to date without a reload: fetches the page as often as it asks to be, and goes on while the server is away
const say = document.getElementById('say')
const rest = ms => new Promise(done => setTimeout(done, ms))

async function refresh() {
  const old = document.getElementById('live')
  const answer = await fetch(old.dataset.src, {cache: 'no-store'})
  if (!answer.ok) throw new Error(answer.status)
  const live = new DOMParser().parseFromString(await answer.text(), 'text/html').getElementById('live')
  for (const d of live.querySelectorAll('details')) d.open = !!document.getElementById(d.id)?.open
  const focus = old.contains(document.activeElement) && document.activeElement.id
  if (!old.isEqualNode(live)) old.replaceWith(live)
  if (focus) document.getElementById(focus)?.focus()
  if (say.textContent !== live.dataset.say) say.textContent = live.dataset.say
  return +live.dataset.next
}

for (let next = 300; ; await rest(next)) {
  try {
    next = await refresh()
    document.body.classList.remove('away')
  } catch {
    next = 1000
    say.textContent = 'The server does not answer. Trying again…'
    document.body.classList.add('away')
  }
}
